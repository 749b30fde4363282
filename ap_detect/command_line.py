"""The command line of the scripts and commands: their flags, and errors without traces."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from ap_detect import config


def define_config(default_path: str):
  """Defines --config=<file> with --config.<section>.<field>=<value> overrides."""
  # Now, for the definition reads the command line, and a KeyError is all that it says.
  _refuse_unknown_fields(sys.argv)
  return config_flags.DEFINE_config_file(
    "config", default_path, "Config file; override a field by --config.<field>=<value>."
  )


def define_eval_overrides():
  """Defines --eval.<field>=<value>, which changes a saved config's `eval` section.

  Returns:
    Function of no arguments: dict of the fields that were given and their values.
  """
  _refuse_unknown_fields(sys.argv)
  holder = config_flags.DEFINE_config_dict(
    "eval",
    config.default_config().eval,
    "Override a field of the run's eval section by --eval.<field>=<value>.",
  )

  def given():
    names = config_flags.get_override_values(flags.FLAGS["eval"])
    return {name: holder.value[name] for name in names}

  return given


def define_model_dir():
  """Defines --model_dir, with the demo's folder as its default."""
  return flags.DEFINE_string("model_dir", "runs/shapes", "Folder of the run.")


def define_checkpoint():
  """Defines --checkpoint, as `training.run.restore` takes it."""
  return flags.DEFINE_string(
    "checkpoint", "", "Path of a checkpoint, or 'latest'; by default the best."
  )


def define_score_threshold():
  """Defines --score_threshold, as `training.run.load_thresholds` takes it."""
  return flags.DEFINE_float(
    "score_threshold",
    None,
    "Score that detections need; by default the run's own threshold of each class, "
    "best by F1 on its validation split.",
    lower_bound=0.0,
    upper_bound=1.0,
  )


def run(main, *, takes_arguments=False) -> None:
  """absl's app.run, with errors that a user can act on.

  A wrong override lists the fields there are. Faults in what the user gave (ValueError,
  OSError) are printed without a traceback, unless --verbosity=1.

  Args:
    main: function of argv.
    takes_arguments: whether there may be arguments that are no flags.
  """

  def guarded_main(argv: Sequence[str]):
    if len(argv) > 1 and not takes_arguments:
      sys.exit(f"error: unexpected argument {argv[1]!r}; flags are --name=value")
    try:
      return main(argv)
    except KeyboardInterrupt:
      sys.exit(130)
    except (ValueError, OSError) as error:
      logging.debug("where it was raised:", exc_info=True)
      sys.exit(f"error: {error}")

  app.run(guarded_main, flags_parser=_parse_flags)


def _refuse_unknown_fields(argv):
  for argument in argv[1:]:
    found = re.match(r"--?(?:no)?(config\.|(?=eval\.))([^=]*)", argument)
    if found and found[2] not in config.field_names():
      sys.exit(f"error: {config.unknown_field(found[2])}")


def _parse_flags(argv):
  try:
    return flags.FLAGS(_without_overruled(argv))
  except (flags.Error, TypeError, AttributeError, KeyError, OSError) as error:
    sys.exit(f"error: {error}")


def _without_overruled(argv):
  """Only the last of several values of a field, where ml_collections joins tuples."""
  last = {argument.partition("=")[0]: place for place, argument in enumerate(argv)}
  return [
    argument
    for place, argument in enumerate(argv)
    if not re.match(r"--?(config|eval)\..*=", argument)
    or last[argument.partition("=")[0]] == place
  ]
