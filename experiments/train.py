"""Trains the runs of experiments that are not done, and writes a JSON file for each.

  python experiments/train.py --list

  python experiments/train.py --experiments=table1,imbalance

  python experiments/train.py --bccd_dir=BCCD --weights=lite0.weights.h5 \
    --only='comparison_bccd/ap-*' --limit_minutes=120

Runs go one after another on a CPU, and one on each GPU where there are several. A run that
was stopped goes on where it was; one whose JSON file is there is done. What has to be
known first is done first: a comparison waits for its tuning. Two of these commands may run
beside each other: a run that the other one trains is left to it.

Folders: --runs_dir has the runs with their logs, --results_dir the JSON files, of which
experiments/render.py makes docs/results/.
"""

from __future__ import annotations

import fnmatch
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import plan
import settings
from absl import flags, logging

from ap_detect import command_line, logs

EXPERIMENTS = flags.DEFINE_list(
  "experiments", [], "Names of experiments, in the order to do them; by default all."
)
ONLY = flags.DEFINE_list(
  "only", [], "Patterns of <experiment>/<run>; other runs are left out."
)
LIST = flags.DEFINE_bool(
  "list", False, "Says what there is, what is done and what the rest will take."
)
LIMIT_MINUTES = flags.DEFINE_float(
  "limit_minutes",
  0.0,
  "Stops after so many minutes, saving the runs that go on; 0 for never.",
  lower_bound=0.0,
)
settings.use()

_HERE = pathlib.Path(__file__).resolve().parent
# Status of one_run.py where another process trains the run.
_IN_USE = 75
# How long a run that was told to stop may take to save itself.
_STOP_SECONDS = 120.0


def main(_):
  experiments = settings.make_catalog()
  names = EXPERIMENTS.value or list(experiments.experiments)
  unknown = sorted({*names} - {*experiments.experiments})
  if unknown:
    raise ValueError(
      f"there is no experiment {', '.join(unknown)}; there are "
      f"{', '.join(experiments.experiments)}"
    )
  chosen = [experiments.experiments[name] for name in names]
  if LIST.value:
    print(_listing(experiments, chosen))
    return
  for experiment in list(chosen):
    missing = experiments.missing_places(experiment, settings.places())
    if missing:
      flags_needed = " and ".join(f"--{flag}" for flag in missing)
      logging.info("%s is left out: it needs %s", experiment.name, flags_needed)
      chosen.remove(experiment)
  runner = _Runner(experiments, chosen, _devices())
  runner.run()
  waiting = sum(
    experiments.num_runs(one) - _num_done(experiments, one) for one in chosen
  )
  logging.info(
    "%d done, %d failed, %d left", runner.num_done, len(runner.failed), waiting
  )
  if runner.failed:
    sys.exit(1)


class _Runner:
  """Starts runs on free devices until none is due, and stops them when told to.

  Attributes:
    failed: (experiment, run) names of the runs that ended with an error.
    num_done: runs that were done.
  """

  def __init__(self, experiments, chosen, devices):
    self._experiments = experiments
    self._chosen = chosen
    self._free = list(devices)
    self._running = {}  # process -> (run, device, since, log)
    self._left = set()  # to other processes
    self._stopped_by = 0
    self._deadline = (
      time.monotonic() + 60 * LIMIT_MINUTES.value if LIMIT_MINUTES.value else None
    )
    self.failed = set()
    self.num_done = 0

  def run(self):
    """Until nothing is due, the time is over, or a signal came."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._note_signal)
    while True:
      while self._free and not self._is_over():
        run = self._next()
        if run is None:
          break
        self._start(run)
      if not self._running:
        break
      if self._is_over():
        self._stop()
        break
      self._collect()
    if self._stopped_by:
      sys.exit(128 + self._stopped_by)

  def _note_signal(self, number, _frame):
    self._stopped_by = number

  def _is_over(self):
    is_late = self._deadline is not None and time.monotonic() >= self._deadline
    return bool(self._stopped_by) or is_late

  def _next(self):
    """The next run that is due and that nobody trains; None for none."""
    taken = (
      self.failed
      | self._left
      | {(run.experiment, run.name) for run, *_ in self._running.values()}
    )
    for experiment in self._chosen:
      for run in self._experiments.due(experiment):
        name = f"{run.experiment}/{run.name}"
        is_wanted = not ONLY.value or any(
          fnmatch.fnmatchcase(name, pattern) for pattern in ONLY.value
        )
        if is_wanted and (run.experiment, run.name) not in taken:
          return run
    return None

  def _start(self, run):
    device = self._free.pop(0)
    log_path = f"{plan.model_dir(settings.RUNS_DIR.value, run)}.log"
    os.makedirs(os.path.dirname(log_path), exist_ok=True)
    command = [
      *(sys.executable, str(_HERE / "one_run.py")),
      *(f"--experiment={run.experiment}", f"--run={run.name}"),
      *settings.arguments(),
    ]
    environment = {**os.environ}
    if device is not None:
      environment["CUDA_VISIBLE_DEVICES"] = device
    with open(log_path, "a", encoding="utf-8") as log:
      process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it once, through this process
      )
    self._running[process] = (run, device, time.monotonic(), log_path)
    logging.info("%s/%s begins%s", run.experiment, run.name, _on(device))

  def _collect(self):
    """Waits a little, and takes the runs that ended."""
    time.sleep(0.5)
    for process in list(self._running):
      if process.poll() is None:
        continue
      run, device, since, log_path = self._running.pop(process)
      self._free.append(device)
      minutes = (time.monotonic() - since) / 60
      if process.returncode == _IN_USE:
        self._left.add((run.experiment, run.name))
        logging.info("%s/%s is left to another process", run.experiment, run.name)
        continue
      result = None if process.returncode else self._experiments.result(run)
      name = f"{run.experiment}/{run.name}"
      if result is None:
        self.failed.add((run.experiment, run.name))
        logging.error("%s failed: %s (%s)", name, _last_line(log_path), log_path)
        continue
      self.num_done += 1
      figures = ", ".join(
        f"{place} AP {figures['AP']:.3f}"
        for place, figures in result["metrics"].items()
      )
      logging.info("%s done in %.1f minutes: %s", name, minutes, figures)

  def _stop(self):
    """Has all runs save themselves and end."""
    for process, (run, *_) in self._running.items():
      logging.info("%s/%s is stopped; it will go on", run.experiment, run.name)
      process.send_signal(signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    for process in self._running:
      try:
        process.wait(max(until - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        process.kill()


def _devices():
  """What runs go on: [None] for the CPU or a single GPU, else every GPU's name.

  TensorFlow, which would have to be loaded to be asked, stays out of this process.
  """
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    names = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
  elif shutil.which("nvidia-smi"):
    command = ["nvidia-smi", "-L"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    names = [str(number) for number in range(len(lines))]
  else:
    names = []
  return names if len(names) > 1 else [None]


def _on(device):
  return "" if device is None else f" on GPU {device}"


def _last_line(path):
  with open(path, encoding="utf-8", errors="replace") as file:
    lines = file.read().splitlines()
  return lines[-1] if lines else "it said nothing"


def _num_done(experiments, experiment):
  return len(experiments.runs(experiment)) - len(experiments.due(experiment))


def _listing(experiments, chosen):
  """A line for every experiment, and what the rest takes."""
  lines, total = [], 0.0
  width = max(len(one.name) for one in chosen)
  for one in chosen:
    number, done = experiments.num_runs(one), _num_done(experiments, one)
    minutes = (number - done) * one.minutes
    total += minutes
    needs = [f"--{flag}" for flag in experiments.missing_places(one, {})]
    if one.tuning:
      needs.append(one.tuning)
    lines.append(
      f"{one.name:<{width}}  {done:>3} of {number:>3} runs done, {minutes:>5.0f} minutes "
      f"left{', needs ' + ', '.join(needs) if needs else ''}"
    )
    lines.append(f"{'':<{width}}  {one.question}")
  lines.append(f"{total / 60:.1f} hours left on 2 CPU cores that do nothing else")
  return "\n".join(lines)


if __name__ == "__main__":
  logs.set_up()
  command_line.run(main)
