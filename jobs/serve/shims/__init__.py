"""The files that `endoreward shim` prints, each for the environment of a training framework; none is imported here."""
