"""Names the first tensor of a failed step that is not finite.

ap_detect debug_batch runs/mine/non_finite/step-1234.npz

Takes the file that a training wrote when a loss or a gradient became infinite or NaN, and
goes through that step again, op by op, with the weights before it: every layer, the losses,
and the gradients. Nothing is changed.
"""

import sys

from ap_detect import command_line


def main(argv):
  if len(argv) != 2:
    sys.exit(
      "error: give one file that a training wrote into its folder's non_finite/, as in "
      "ap_detect debug_batch runs/mine/non_finite/step-1234.npz"
    )
  path = command_line.local_path(argv[1])
  command_line.load_tensorflow()
  from ap_detect.training import debugging, failed_batch

  failed = failed_batch.read(path)
  about = failed.about
  numbers = ", ".join(f"{name} {value}" for name, value in about["numbers"].items())
  print(f"in training: {numbers}")
  missing = about["step"] - about["weights_step"]
  if missing:
    print(f"the weights are those of {missing} steps before, for Ctrl-C was pressed")
  is_finite = True
  for examined in debugging.debug_batch(failed):
    print(debugging.report(examined, about["replicas"]), flush=True)
    is_finite &= examined.examination.first_non_finite is None
  if is_finite:
    print(
      "It does not happen op by op. What training does otherwise is to compile "
      "(train.jit_compile=never leaves that out), to decay and to clip; gradients that "
      "are finite each may overflow in their norm."
    )


if __name__ == "__main__":
  command_line.run(main, takes_arguments=True)
