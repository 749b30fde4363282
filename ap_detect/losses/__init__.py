"""Losses. One file a loss; what is public is listed here.

`pairwise`, `ranking`, `interval_grid`, `scans` and `branching` are the engine of the
ranking losses.
"""

from ap_detect.losses.ap_loss import ap_loss, ap_loss_and_gradient
from ap_detect.losses.auc_loss import auc_loss, auc_loss_and_gradient
from ap_detect.losses.box_losses import giou, l1, smooth_l1
from ap_detect.losses.focal_loss import focal_loss
from ap_detect.losses.keras_losses import APLoss, AUCLoss
from ap_detect.losses.labels import BACKGROUND, IGNORED
from ap_detect.losses.quality_focal_loss import quality_focal_loss

__all__ = [
  "BACKGROUND",
  "IGNORED",
  "APLoss",
  "AUCLoss",
  "ap_loss",
  "ap_loss_and_gradient",
  "auc_loss",
  "auc_loss_and_gradient",
  "focal_loss",
  "giou",
  "l1",
  "quality_focal_loss",
  "smooth_l1",
]
