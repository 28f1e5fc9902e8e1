"""Pictures as vision-language models take them.

families   how each family's processor writes a picture as tokens
processor  a model folder's image processor, without the rest of its processor, which may need torchvision
features   pictures through a model once, for all that is asked behind them
"""

from pipeline.models.pictures.families import FAMILIES
from pipeline.models.pictures.processor import PictureProcessor, open_pictures, picture_processor, require_pictures

__all__ = ["FAMILIES", "PictureProcessor", "open_pictures", "picture_processor", "require_pictures"]
