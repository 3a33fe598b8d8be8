"""What can go wrong, as types a caller can catch.

Every error says where (path), what was received, which rule it breaks and what to do about it.
Each class is also the built-in error that a caller would expect.
"""


class SpQuantError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SpQuantError, ValueError):
    """A configuration holds a value outside its rule."""


class SelectionError(SpQuantError, ValueError):
    """A selector or a whole configuration matches nothing."""


class ConversionError(SpQuantError, ValueError):
    """A model cannot be converted as it is."""


class UnsupportedModuleError(ConversionError, TypeError):
    """A module was selected that has no handler."""


class SampleError(SpQuantError, ValueError):
    """The model cannot be run on the sample that was given."""


class CheckpointError(SpQuantError, ValueError):
    """A checkpoint holds values that cannot be loaded."""


class ModelError(SpQuantError, ValueError):
    """A network is asked for that does not exist or cannot take this size."""


class TimestepError(SpQuantError, ValueError):
    """A weight that changes with the time step is asked for a step that it does not have."""


class GateError(SpQuantError, ValueError):
    """A gate cannot decide with what it was given, or a network holds none."""


class AnalysisError(SpQuantError, ValueError):
    """A report cannot be made from what was given."""


class DistillationError(SpQuantError, ValueError):
    """A student cannot learn from a teacher with what was given."""


class DataError(SpQuantError, ValueError):
    """A data set is asked for that cannot be made, or a recording cannot be used."""


class KernelError(SpQuantError, ValueError):
    """A recurrence is asked for with tensors or settings that it cannot run."""


class DeployError(SpQuantError, ValueError):
    """A network cannot become an integer network, or one cannot be used as asked."""


class FormatError(SpQuantError, ValueError):
    """A file of an integer network is damaged, altered, or of another format."""


class FileError(SpQuantError, OSError):
    """A file of an integer network cannot be opened or written."""


class PackingError(SpQuantError, ValueError):
    """Numbers do not fit the bytes they should go into or came from."""


class ExportError(SpQuantError, ValueError):
    """A network cannot be written in a format that would make another network of it."""


class MissingHostError(SpQuantError, ImportError):
    """A framework is needed that is not installed."""


class SpQuantWarning(UserWarning):
    """Base of every warning that this package gives."""


class SelfFiringWarning(SpQuantWarning):
    """A silent neuron would fire without input: its stored membrane reaches the threshold."""


class GateWarning(SpQuantWarning):
    """The gates of a network did not reach their target."""


class AnalysisWarning(SpQuantWarning):
    """A report was made, of something that says little."""


class KernelWarning(SpQuantWarning):
    """A fast path is not available here, and a slower one with the same results is taken."""


class DataWarning(SpQuantWarning):
    """A stored data set was not usable and is made again, or damaged recordings were left out."""


class CheckpointWarning(SpQuantWarning):
    """A checkpoint does not fit and was not loaded."""


class ExportWarning(SpQuantWarning):
    """A file says something in metadata only, which a reader may ignore."""
