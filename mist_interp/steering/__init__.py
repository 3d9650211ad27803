"""How is a policy moved along a direction of its own activations?"""

from mist_interp.steering.direction import SteeringDirection
from mist_interp.steering.jacobian import action_jacobian, cross_talk, minimum_norm_edit

__all__ = ["SteeringDirection", "action_jacobian", "cross_talk", "minimum_norm_edit"]
