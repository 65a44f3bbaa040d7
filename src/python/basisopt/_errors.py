"""Exceptions. The messages are the library's own words; the classes say whose turn it is.

Whatever the caller's own code raises (an iterator of images, a progress callback, a signal handler) comes out as itself.
"""


class Error(Exception):
    """Something went wrong in basisopt. The model that was given is as it was."""


class PipelineError(Error, ValueError):
    """What was asked for makes no sense: a pipeline, a budget, an option, the name of a dimension."""


class ModelError(Error, ValueError):
    """The model cannot be read, run or written, or its weights are damaged."""


class DataError(Error, ValueError):
    """The images do not suit the network, have the wrong type or shape, or are too few."""


class CheckError(Error):
    """A pass did not keep its promise: outputs moved too far, or the network can no longer be run."""


class FileError(Error, OSError):
    """A file cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file is not there."""
