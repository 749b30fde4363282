"""Losses. One file a loss; what is public is listed here."""

from ap_detect.losses.ap_loss import ap_loss
from ap_detect.losses.box_losses import smooth_l1
from ap_detect.losses.focal_loss import focal_loss
from ap_detect.losses.labels import BACKGROUND, IGNORED

__all__ = ["BACKGROUND", "IGNORED", "ap_loss", "focal_loss", "smooth_l1"]
