"""A corpus: from the paths a person gives to samples, step by step.

    files/         which files, and their rows; knows no column
      inputs       paths -> InputFiles      what there is to read, under names that are the same on every machine
      folders      names -> names           which files of a folder are data, and of one split
      contents     bytes -> a remedy        what a file is that is not what its name says
      shards       Shard, FilePlan          the unit of commit: a row range of one file and the digest of its content
      text         bytes -> records         JSON lines, one JSON array, a sequence of JSON objects
      columnar     bytes -> record batches  Parquet, Arrow, CSV, TSV
      readers      InputFile -> rows        plan_file once, read_shards on the workers
      sections     a large file's parts     planned by as many processes, and joined
    detection      rows -> Shape            which columns hold what: by name, or as a published layout
    labels/        which response is better
      layouts      rows -> Layout           published layouts, whose authors say what their columns mean
      misreadings  rows -> InputError       columns that look like a known arrangement and are another
      meaning      rows -> LabelRule        what a label means: stated, proven by its `words`, or refused
      rules        row -> Decision          a rule applied to a row
      advice       rows -> keys             what an error offers where nothing is recognised
    shapes         row -> Sample -> Turns   one row normalised; `columns` and `messages` read its values
    samples        Sample, Response, Turn   plain data, and ids
    examine        whole files              labels held against every row

Nothing here holds a whole file in memory, knows a tokenizer, or starts a process.
"""

from pipeline.corpus.detection import detect
from pipeline.corpus.examine import counted, require_proof
from pipeline.corpus.files.folders import Choice
from pipeline.corpus.files.inputs import Format, InputFile, InputFiles, file_format, find_files
from pipeline.corpus.files.readers import NumberedRow, head_of, plan_file, read_shards
from pipeline.corpus.files.sections import digest_of, joined, plan_section, sections
from pipeline.corpus.files.shards import FilePlan, Shard, Shards, read_together
from pipeline.corpus.shapes import Shape, turns

__all__ = [
    "Choice",
    "FilePlan",
    "Format",
    "InputFile",
    "InputFiles",
    "NumberedRow",
    "Shape",
    "Shard",
    "Shards",
    "counted",
    "detect",
    "digest_of",
    "file_format",
    "find_files",
    "head_of",
    "joined",
    "plan_file",
    "plan_section",
    "read_shards",
    "read_together",
    "require_proof",
    "sections",
    "turns",
]
