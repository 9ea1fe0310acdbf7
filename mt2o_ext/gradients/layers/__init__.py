"""The Gram matrix of many losses layer by layer, without the gradients: an engine for `WeightedBackward`."""

from .convolution import ConvolutionKind as ConvolutionKind
from .embedding import EmbeddingKind as EmbeddingKind
from .engine import LayerEngine as LayerEngine
from .kind import LayerKind as LayerKind
from .kind import kind_of as kind_of
from .kind import register as register
from .linear import LinearKind as LinearKind
from .normalization import BatchNormKind as BatchNormKind
from .normalization import GroupNormKind as GroupNormKind
from .normalization import LayerNormKind as LayerNormKind
from .picked import Picked as Picked
from .terms import Dense as Dense
from .terms import Outer as Outer
from .terms import Shift as Shift
from .terms import Term as Term
