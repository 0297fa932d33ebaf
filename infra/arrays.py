"""Types of numpy arrays, one name for each element type."""

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]
Integer = npt.NDArray[np.integer]  # of any width, signed or unsigned
Number = npt.NDArray[np.number]  # integers or floating-point numbers of any width
Records = npt.NDArray[np.void]  # structured: rows of a shard's index
