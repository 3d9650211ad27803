"""How is a policy moved along a direction of its own activations?"""

from mist_interp.steering.direction import SteeringDirection

__all__ = ["SteeringDirection"]
