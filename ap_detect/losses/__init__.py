"""Losses. One file a loss; what is public is listed here.

The ranking losses say what a positive's error is, and `ranking_loss` does the rest, on
the engine in `ranking/`. Configs name a loss of CLASSIFICATION_LOSSES, or of the two
kinds of box losses: of encoded offsets and of the boxes themselves.
"""

from ap_detect.losses.ap_loss import ap_loss, ap_loss_and_gradient
from ap_detect.losses.auc_loss import auc_loss, auc_loss_and_gradient
from ap_detect.losses.box_losses import giou, l1, smooth_l1
from ap_detect.losses.focal_loss import focal_loss
from ap_detect.losses.keras_losses import APLoss, AUCLoss
from ap_detect.losses.labels import BACKGROUND, IGNORED
from ap_detect.losses.ohem_cross_entropy_loss import ohem_cross_entropy_loss
from ap_detect.losses.quality_focal_loss import quality_focal_loss
from ap_detect.losses.rank_and_sort_loss import (
  rank_and_sort_loss,
  rank_and_sort_loss_and_gradient,
)
from ap_detect.losses.ranking.errors import Comparisons, Errors
from ap_detect.losses.ranking_loss import ranking_loss
from ap_detect.losses.smooth_ap_loss import smooth_ap_loss
from ap_detect.losses.structured_hinge_ap_loss import structured_hinge_ap_loss

CLASSIFICATION_LOSSES = {
  "ap_loss": ap_loss,
  "auc_loss": auc_loss,
  "focal_loss": focal_loss,
  "ohem_cross_entropy_loss": ohem_cross_entropy_loss,
  "quality_focal_loss": quality_focal_loss,
  "rank_and_sort_loss": rank_and_sort_loss,
  "smooth_ap_loss": smooth_ap_loss,
  "structured_hinge_ap_loss": structured_hinge_ap_loss,
}
OFFSET_LOSSES = {"smooth_l1": smooth_l1, "l1": l1}
BOX_LOSSES = {"giou": giou}

__all__ = [
  "BACKGROUND",
  "BOX_LOSSES",
  "CLASSIFICATION_LOSSES",
  "IGNORED",
  "OFFSET_LOSSES",
  "APLoss",
  "AUCLoss",
  "Comparisons",
  "Errors",
  "ap_loss",
  "ap_loss_and_gradient",
  "auc_loss",
  "auc_loss_and_gradient",
  "focal_loss",
  "giou",
  "l1",
  "ohem_cross_entropy_loss",
  "quality_focal_loss",
  "rank_and_sort_loss",
  "rank_and_sort_loss_and_gradient",
  "ranking_loss",
  "smooth_ap_loss",
  "smooth_l1",
  "structured_hinge_ap_loss",
]
