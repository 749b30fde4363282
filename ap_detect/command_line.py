"""The command line of the scripts and commands: flags, help, errors without traces."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from ap_detect import config, config_files, config_rules, errors, logs

# Flags belong to the script that calls the functions below.
flags.disclaim_key_flags()

HELP = ("-h", "--h", "-help", "--help", "-?", "--?", "--helpshort")


def define_config(default: str):
  """Defines --config=<name or path> with --config.<section>.<field>=<value> overrides.

  Args:
    default: name of a config that comes with the package.

  Returns:
    What has the nested values, for config.resolve, as its `value` once flags are parsed.
  """
  meaning = (
    "Config: path of a .py file, or the name of one that comes with ap_detect "
    f"({', '.join(config_files.names())}). Override a field by "
    "--config.<section>.<field>=<value>."
  )
  if _asks_for_help():
    return flags.DEFINE_string("config", default, meaning)
  sys.argv[:], options = _without_loss_options(sys.argv)
  _refuse_unknown_fields(sys.argv)
  return _Config(
    config_flags.DEFINE_config_file("config", config_files.find(default), meaning),
    options,
  )


class _Config:
  """The flag --config, and options of the loss, which ml_collections does not take."""

  def __init__(self, flag, options):
    self._flag = flag
    self._options = options

  @property
  def value(self):
    """Nested values, for config.resolve."""
    return config.override_loss_options(self._flag.value, self._options)


def define_eval_overrides():
  """Defines --eval.<field>=<value>, which changes a saved config's `eval` section.

  Returns:
    Function of no arguments: dict of the fields that were given and their values.
  """
  meaning = "Override a field of the run's eval section by --eval.<field>=<value>."
  if _asks_for_help():
    flags.DEFINE_string("eval", None, meaning)
    return dict
  _refuse_unknown_fields(sys.argv)
  holder = config_flags.DEFINE_config_dict(
    "eval", config.default_config().eval, meaning
  )

  def given():
    names = config_flags.get_override_values(flags.FLAGS["eval"])
    return {name: holder.value[name] for name in names}

  return given


def define_path(name: str, default: str | None, meaning: str, *, required=False):
  """Defines a flag that is a local path; ~ is the user's home folder.

  Args:
    name: of the flag.
    default: value where it is not given; None where it is required.
    meaning: for people; sentences.
    required: whether it must be given.
  """
  return flags.DEFINE(_PathParser(), name, default, meaning, required=required)


def define_model_dir():
  """Defines --model_dir, with the demo's folder as its default."""
  return define_path("model_dir", "runs/shapes", "Folder of the run.")


def define_checkpoint():
  """Defines --checkpoint, as `runs.folder.find_checkpoint` takes it."""
  return define_path(
    "checkpoint", "", "Path of a checkpoint, or 'latest'; by default the best."
  )


def define_averaged_weights():
  """Defines --averaged_weights, as `runs.model.restore` takes it."""
  return flags.DEFINE_bool(
    "averaged_weights",
    True,
    "Whether averaged weights are used, where the run keeps them (train.ema_decay).",
  )


def define_replicas():
  """Defines --replicas: on how many devices the network is replicated."""
  return flags.DEFINE_integer(
    "replicas",
    0,
    "Number of replicas of the network. 0: one on every GPU, or one on the CPU where "
    "there is no GPU. n: one on each of the first n GPUs, or on each of n logical CPU "
    "devices where there is no GPU.",
    lower_bound=0,
  )


def define_scores():
  """Defines the flags of which detections are shown, and with what scores.

  Returns:
    Function of no arguments: dict of the options of runs.scores.load_shown_scores.
  """
  threshold = flags.DEFINE_float(
    "score_threshold",
    None,
    "Score that detections need; by default the run's own threshold of each class, "
    "best by F1 on its validation split.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  wanted = [
    flags.DEFINE_float(
      f"min_{noun}",
      None,
      f"In place of --score_threshold: the {threshold_taken} threshold at which the "
      f"detections of all classes together had this {noun} on the validation split.",
      lower_bound=0.0,
      upper_bound=1.0,
    )
    for noun, threshold_taken in (("precision", "lowest"), ("recall", "highest"))
  ]
  calibrate = flags.DEFINE_bool(
    "calibrate",
    True,
    "Whether scores are the precision to expect of detections, as measured on the "
    "validation split, or as the network gives them.",
  )
  return lambda: {flag.name: flag.value for flag in (threshold, *wanted, calibrate)}


def define_max_image_pixels():
  """Defines --max_image_pixels, which changes a saved config's data.max_image_pixels."""
  return flags.DEFINE_integer(
    "max_image_pixels",
    None,
    "Larger images are invalid; by default as the run's config has it.",
    lower_bound=1,
  )


def load_tensorflow() -> None:
  """Imports TensorFlow, without a word unless --verbosity=1.

  Commands that import it at their head call this first, after the definition of their
  flags: where the command line asks for help, that is answered before, and Ctrl-C ends
  what follows without a traceback.
  """
  sys.excepthook = _excepthook
  _answer_help()
  logs.set_up(_asked_verbosity())
  logs.load_tensorflow()


def run(main, *, takes_arguments=False) -> None:
  """absl's app.run, with help and errors that a user can act on.

  A wrong override lists the fields there are. Errors that are no faults of ours, see
  errors.is_for_the_user, are printed without a traceback, unless --verbosity=1, and the
  status is 1, or errors.LOST_WORKER_STATUS where another worker is gone. After Ctrl-C it is 130, and 141 where nobody reads the output any more, as
  a shell has it.

  Args:
    main: function of argv.
    takes_arguments: whether there may be arguments that are no flags.
  """

  def guarded_main(argv: Sequence[str]):
    if len(argv) > 1 and not takes_arguments:
      sys.exit(f"error: unexpected argument {argv[1]!r}; flags are --name=value")
    logs.set_up(flags.FLAGS.verbosity)
    try:
      main(argv)
      sys.stdout.flush()
    except BrokenPipeError:
      # What is still buffered would meet the same error when Python ends.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(141)
    except (Exception, KeyboardInterrupt) as error:
      if _is_interruption(error):
        sys.exit(130)
      if not errors.is_for_the_user(error):
        raise
      logging.debug("where it was raised:", exc_info=True)
      print(logs.color(f"error: {errors.describe(error)}"), file=sys.stderr)
      is_lost = isinstance(error, errors.LostWorkerError)
      sys.exit(errors.LOST_WORKER_STATUS if is_lost else 1)

  sys.excepthook = _excepthook
  _answer_help()
  app.run(guarded_main, flags_parser=_parse_flags)


def local_path(text: str) -> str:
  """A path that was given, with ~ replaced by the user's home folder.

  Raises:
    ValueError: it is the address of something remote.
  """
  path = config_rules.local_path.normalize(text)
  if not config_rules.local_path.accepts(path):
    raise ValueError(f"{text} must {config_rules.local_path.requirement}")
  return path


class _PathParser(flags.ArgumentParser):
  """Of local paths, by the rule of the config's paths."""

  def parse(self, argument):
    try:
      return local_path(argument)
    except ValueError:
      # absl names the flag and its value.
      raise ValueError(f"must {config_rules.local_path.requirement}") from None

  def flag_type(self):
    return "path"


def _excepthook(kind, error, trace):
  """Of what is raised outside of a main function, as while TensorFlow loads."""
  if _is_interruption(error):
    sys.exit(130)
  sys.__excepthook__(kind, error, trace)


def _is_interruption(error):
  """Whether it is Ctrl-C, or what an import has made of that."""
  while error is not None and not isinstance(error, KeyboardInterrupt):
    error = error.__cause__ or error.__context__
  return error is not None


def _answer_help():
  """Where the command line asks for help, prints it and ends with status 0."""
  if not _asks_for_help():
    return
  # Of `--help | head`, which reads no more than it shows.
  with contextlib.suppress(BrokenPipeError):
    print(_help_text(), flush=True)
  sys.exit(0)


def _asks_for_help():
  arguments = sys.argv[1:]
  if "--" in arguments:
    arguments = arguments[: arguments.index("--")]
  return any(argument in HELP for argument in arguments)


def _asked_verbosity():
  """Value of --verbosity, before flags are parsed; 0 for none that is valid."""
  found = re.findall(r" --?(?:verbosity|v)[= ](-?\d+)(?= )", f" {' '.join(sys.argv)} ")
  return int(found[-1]) if found else 0


def _without_loss_options(argv):
  """(the other arguments, (field, value) of each option of the loss).

  ml_collections, which looks for overrides in sys.argv, takes only fields that are there,
  and of an older version no mappings.
  """
  others, options = [], []
  arguments = iter(argv)
  names = "|".join(map(re.escape, config.MOVED_FIELDS))
  for argument in arguments:
    found = re.fullmatch(
      rf"--?(no)?config\.({names}|train\.loss_options(?:\.\w+)?)(?:=(.*))?",
      argument,
      re.DOTALL,
    )
    if not found:
      others.append(argument)
      continue
    negated, field, text = found.groups()
    if negated or (text is None and field == "train.interpolated"):
      text = str(not negated)  # as absl has it for booleans
    value = _literal(next(arguments, "") if text is None else text)
    if field == "train.loss_options" and not isinstance(value, dict):
      sys.exit(
        f"error: --config.{field} must be a mapping, as in --config.{field}=\"{{'delta': "
        f'0.5}}", got {value!r}'
      )
    options.append((field, value))
  return others, options


def _literal(text):
  """The value that a text stands for in Python, or the text."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return {"true": True, "false": False}.get(text.lower(), text)


def _refuse_unknown_fields(argv):
  """Before ml_collections, which says of them no more than a KeyError."""
  for argument in argv[1:]:
    name = re.match(r"--?(?:no)?(?:config\.|(?=eval\.))([^=]*)", argument)
    if name and name[1] not in config.field_names():
      sys.exit(f"error: {config.unknown_field(name[1])}")


def _help_text():
  """What the script does, its flags, and the config's fields that it takes."""
  items = [
    _help_item(f"--{flag.name}", _default_text(flag), flag.help)
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    if flag.name != "eval"
  ]
  blocks = [_wrap(sys.modules["__main__"].__doc__ or ""), "\n".join(items)]
  if "config" in flags.FLAGS:
    blocks.append(
      _wrap("Config fields. A default applies where the config file sets no value.")
    )
    blocks += [_section_help(section, "--config.") for section in config.SECTIONS]
  if "eval" in flags.FLAGS:
    blocks.append(
      _wrap("Config fields. A field that is not given keeps its value in the run.")
    )
    blocks.append(_section_help("eval", "--"))
  return "\n\n".join(filter(None, blocks))


def _section_help(section, prefix):
  title = f"{prefix}{section}: {config.SECTIONS[section].__doc__}"
  items = [
    _help_item(
      f"{prefix}{item.name}",
      f"{item.type_name}, default {item.default!r}",
      item.meaning,
    )
    for item in config.describe(section)
  ]
  return "\n".join([_wrap(title), *items])


def _default_text(flag):
  if flag.default is None:
    is_required = not all(validator.checker(None) for validator in flag.validators)
    return "required" if is_required else "optional"
  return f"default {flag.default!r}"


def _help_item(name, default, meaning):
  return f"{_wrap(f'{name} ({default})', '  ')}\n{_wrap(meaning, '      ')}"


def _wrap(text, indent=""):
  """Lines of 80 columns at most; paragraphs stay apart."""
  return "\n\n".join(
    textwrap.fill(
      " ".join(paragraph.split()),
      80,
      initial_indent=indent,
      subsequent_indent=indent,
      break_long_words=False,
      break_on_hyphens=False,
    )
    for paragraph in text.strip().split("\n\n")
  )


def _parse_flags(argv):
  try:
    return flags.FLAGS(_without_overruled(_spelled_out(argv)))
  except (flags.Error, TypeError, AttributeError, KeyError, OSError) as error:
    sys.exit(f"error: {errors.describe(error)}")


def _spelled_out(argv):
  """Arguments with what ml_collections does not do.

  That is: configs by name, ~ in their paths, and lists of names without quotes.
  """
  spelled_out: list[str] = []
  for argument in argv:
    name, equals, value = argument.partition("=")
    if not equals and spelled_out and _is_list_of_names(spelled_out[-1]):
      # --config.data.class_names cat,dog
      spelled_out[-1] += f"={_names_literal(spelled_out[-1], argument)}"
    elif not equals and spelled_out and spelled_out[-1] in ("-config", "--config"):
      spelled_out.append(_config_path(argument))
    elif equals and name in ("-config", "--config"):
      spelled_out.append(f"{name}={_config_path(value)}")
    elif equals and _is_list_of_names(name):
      spelled_out.append(f"{name}={_names_literal(name, value)}")
    else:
      spelled_out.append(argument)
  return spelled_out


def _config_path(value):
  try:
    return config_files.find(_PathParser().parse(value))
  except ValueError as error:
    raise flags.Error(f"flag --config={value}: {error}") from error


def _is_list_of_names(argument):
  found = re.fullmatch(r"--?(?:config\.)?(\w+)\.(\w+)", argument)
  return (
    found
    and found[1] in config.SECTIONS
    and config_rules.is_tuple_of_str(config.SECTIONS[found[1]], found[2])
  )


def _names_literal(flag, value):
  """cat,dog as ('cat', 'dog'), which ml_collections takes for one name."""
  try:
    literal = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    literal = None
  # 0,1,2 are names too.
  if isinstance(literal, (str, tuple, list)) and all(
    isinstance(name, str) for name in literal
  ):
    return value
  if re.search(r"""[()\[\]'"]""", value):
    sys.exit(
      f"error: {flag}={value} is no list of names; write {flag}=cat,dog or, where a "
      f"name has commas, brackets or quotes, {flag}=\"('cat', 'dog')\""
    )
  return repr(tuple(name.strip() for name in value.split(",") if name.strip()))


def _without_overruled(argv):
  """Only the last of several values of a field, where ml_collections joins tuples."""
  last = {argument.partition("=")[0]: place for place, argument in enumerate(argv)}
  return [
    argument
    for place, argument in enumerate(argv)
    if not re.match(r"--?(config|eval)\..*=", argument)
    or last[argument.partition("=")[0]] == place
  ]
