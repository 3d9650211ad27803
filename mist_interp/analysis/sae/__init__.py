"""Of which features are activations made, what do the features answer to, and does the policy act on them?"""

from mist_interp.analysis.sae.autoencoder import SparseAutoencoder
from mist_interp.analysis.sae.effects import Ablation, DoseResponse, ablation, active_share, dose_response
from mist_interp.analysis.sae.features import FeatureTable, Firing, feature_table, firing_features
from mist_interp.analysis.sae.files import from_sae_lens, to_sae_lens
from mist_interp.analysis.sae.quality import SaeReport, report
from mist_interp.analysis.sae.rows import TokenRows, split_by_start_state
from mist_interp.analysis.sae.splicing import Splice, ablating, editing, splice
from mist_interp.analysis.sae.training import FitProgress

__all__ = [
    "Ablation",
    "DoseResponse",
    "FeatureTable",
    "Firing",
    "FitProgress",
    "SaeReport",
    "SparseAutoencoder",
    "Splice",
    "TokenRows",
    "ablating",
    "ablation",
    "active_share",
    "dose_response",
    "editing",
    "feature_table",
    "firing_features",
    "from_sae_lens",
    "report",
    "splice",
    "split_by_start_state",
    "to_sae_lens",
]
