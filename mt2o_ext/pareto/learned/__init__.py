"""Networks that hold a whole front in one set of weights: give one a preference, and it is the model for it.

* `PreferenceNetwork`: a hypernetwork, which makes all weights of a target network from the preference (Pareto
  hypernetworks). Takes any model as it is; is larger than it, unless it works in chunks.
* `PreferenceInput`: one network that sees the preference beside its input (COSMOS). As cheap as one model.
* `LowRankFront`: one model, and for each task a change of low rank that the preference weighs (PaLoRA). Takes any model
  with linear or convolutional layers, and is a little larger than it.

All are trained by any optimizer in the same loop:

    preference = network.sample(generator)
    losses = task_losses(network(x, preference=preference), y)       # T losses
    network.loss(losses, preference).backward()

and `network.front(evaluate)` shows what they have reached. `MT2OFused` trains K separate models instead: its front has
K points, each a model of its own, and no network has to be chosen for it.
"""

from .base import LearnedFront as LearnedFront
from .hypernetwork import PreferenceNetwork as PreferenceNetwork
from .low_rank import LowRankFront as LowRankFront
from .preference_input import PreferenceInput as PreferenceInput

__all__ = ["LearnedFront", "LowRankFront", "PreferenceInput", "PreferenceNetwork"]
