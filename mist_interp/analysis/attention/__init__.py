"""Where do heads look, at which object, and does the action depend on it?"""

from mist_interp.analysis.attention.knockout import (
    Head,
    blinded,
    knockout_edits,
    knockout_shift,
    patch_keys,
    random_patches,
)
from mist_interp.analysis.attention.mass import camera_attention, segment_mass, summarise
from mist_interp.analysis.attention.objects import Tracking, clustered_interval, track
from mist_interp.analysis.attention.pictures import overlay, patch_shares, policy_pictures
from mist_interp.analysis.attention.sinks import SinkView, find_sinks, received, sink_view

__all__ = [
    "Head",
    "SinkView",
    "Tracking",
    "blinded",
    "camera_attention",
    "clustered_interval",
    "find_sinks",
    "knockout_edits",
    "knockout_shift",
    "overlay",
    "patch_keys",
    "patch_shares",
    "policy_pictures",
    "random_patches",
    "received",
    "segment_mass",
    "sink_view",
    "summarise",
    "track",
]
