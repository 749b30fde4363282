"""One step, many ways to run it: compiled, in pieces, several at once, on two replicas."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.runs import model as model_lib
from ap_detect.training import step, trainer

NUM_CLASSES = 3
IMAGES, SIDE = 8, 64
# What float32 forces: sums in another order, carried on from step to step. A wrong factor
# moves weights by 1e-3 and more; that they move so far at all is asserted.
NOISE = 1e-5


@pytest.fixture(scope="module")
def run_steps(make_config, make_strategy):
  """Weights after some steps of SGD, frozen batch norm, real-valued boxes."""

  def run(steps, replicas=1, changes=None, at_once=1, accumulate_steps=1, **options):
    config = make_config(
      {
        "train.classification_loss": "ap_loss",
        "train.optimizer": "sgd",
        "train.momentum": 0.9,
        "train.weight_decay": 1e-3,
        "train.clip_norm": 5.0,
        "train.loss_options": {"images_per_ranking": 1},
        "train.batch_size": IMAGES // replicas // accumulate_steps,
        "train.accumulate_steps": accumulate_steps,
        "data.image_size_px": (SIDE, SIDE),
        **(changes or {}),
      }
    )
    strategy = make_strategy(replicas)
    with strategy.scope():
      tf.keras.utils.set_random_seed(3)
      network = model_lib.build_network(config, NUM_CLASSES, pretrained=False)
      for module in network.submodules:
        if isinstance(module, tf.keras.layers.BatchNormalization):
          module.trainable = False
      feed = step.Feed()
      optimizer = trainer.make_optimizer(config.train, feed, network)
      training_step = trainer.make_step(
        config, network, optimizer, feed, strategy, **options
      )
    before = [weight.numpy() for weight in network.trainable_variables]
    batches = iter(strategy.experimental_distribute_dataset(make_batches(steps)))
    logs = []
    for first in range(0, steps, at_once):
      rates = [0.02 + 0.001 * number for number in range(first, first + at_once)]
      logs.append(training_step([next(batches) for _ in rates], rates, first))
    after = [weight.numpy() for weight in network.trainable_variables]
    assert max(np.abs(a - b).max() for a, b in zip(after, before)) > 100 * NOISE
    losses = np.concatenate([log["total_loss"].numpy() for log in logs])
    return after, losses, training_step

  return run


def make_batches(number):
  rng = np.random.default_rng(0)

  def generate():
    for _ in range(number):
      corner = rng.uniform(0, SIDE - 20, [IMAGES, 4, 2])
      boxes = np.concatenate([corner, corner + rng.uniform(8, 30, [IMAGES, 4, 2])], -1)
      yield {
        "image": rng.uniform(0, 255, [IMAGES, SIDE, SIDE, 3]).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "classes": rng.integers(0, NUM_CLASSES + 1, [IMAGES, 4]).astype(np.int32),
        "ignored": rng.random([IMAGES, 4]) < 0.1,
      }

  shapes = {"image": [SIDE, SIDE, 3], "boxes": [4, 4], "classes": [4], "ignored": [4]}
  types = {"boxes": tf.float32, "classes": tf.int32, "ignored": tf.bool}
  return tf.data.Dataset.from_generator(
    generate,
    output_signature={
      name: tf.TensorSpec([IMAGES, *shape], types.get(name, tf.float32))
      for name, shape in shapes.items()
    },
  )


def difference(one, other):
  found = max(np.abs(a - b).max() for a, b in zip(one, other))
  print(f"largest difference of a weight: {found:.3g}")
  return found


@pytest.fixture(scope="module")
def plain(run_steps):
  """Weights after 6 steps on one replica, nothing compiled, boxes counted by replica."""
  return run_steps(6, changes={"train.jit_compile": "never"})


class TestSixSteps:
  @pytest.mark.parametrize(
    "jit_compile", ["never", pytest.param("always", marks=pytest.mark.slow)]
  )
  def test_in_pieces(self, run_steps, plain, jit_compile):
    weights, losses, _ = run_steps(
      6, changes={"train.jit_compile": jit_compile}, in_pieces=True
    )
    assert difference(weights, plain[0]) <= NOISE
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)

  @pytest.mark.slow
  def test_several_in_one_call(self, run_steps, plain):
    """To the bit, here; the graph of three steps may be rewritten otherwise elsewhere."""
    weights, losses, _ = run_steps(6, changes={"train.jit_compile": "never"}, at_once=3)
    assert difference(weights, plain[0]) <= 1e-6
    np.testing.assert_allclose(losses, plain[1], rtol=1e-6)

  def test_two_replicas_of_half_the_batch(self, run_steps, plain):
    """Every image is ranked by itself, and boxes are counted over both replicas."""
    changes = {"train.jit_compile": "never", "train.box_loss_normalizer": "global"}
    one, losses, _ = run_steps(6, changes=changes)
    two, losses_of_two, _ = run_steps(6, 2, changes)
    assert difference(one, two) <= NOISE
    np.testing.assert_allclose(losses, losses_of_two, rtol=1e-5)
    assert difference(one, plain[0]) <= NOISE  # of one replica, global is its own

  @pytest.mark.slow
  def test_replicas_own_count_differs(self, run_steps, plain):
    """As in the authors' release: what the test above would not be without "global"."""
    changes = {"train.jit_compile": "never", "train.box_loss_normalizer": "replica"}
    two, _, _ = run_steps(6, 2, changes)
    assert difference(plain[0], two) > 10 * NOISE


TOGETHER = {
  "train.jit_compile": "never",
  "train.loss_options": {},
  "train.box_loss_normalizer": "global",
}


@pytest.fixture(scope="module")
def whole(run_steps):
  """Weights after 2 steps on one replica, all images in one ranking."""
  return run_steps(2, changes=TOGETHER)


class TestOneRankingOfTheWholeBatch:
  """All images of a step in one ranking, however they are divided."""

  @pytest.mark.parametrize(
    ("replicas", "accumulate_steps", "jit_compile"),
    [
      (1, 4, "never"),
      pytest.param(2, 2, "never", marks=pytest.mark.slow),
      pytest.param(2, 1, "never", marks=pytest.mark.slow),
      pytest.param(1, 4, "always", marks=pytest.mark.slow),
      pytest.param(2, 2, "always", marks=pytest.mark.slow),
    ],
  )
  def test_is_divided(self, run_steps, whole, replicas, accumulate_steps, jit_compile):
    scope = "global" if replicas > 1 else "replica"
    changes = {"train.jit_compile": jit_compile, "train.ranking_scope": scope}
    weights, losses, _ = run_steps(
      2, replicas, {**TOGETHER, **changes}, accumulate_steps=accumulate_steps
    )
    assert difference(weights, whole[0]) <= NOISE
    np.testing.assert_allclose(losses, whole[1], rtol=1e-5)

  @pytest.mark.slow
  def test_batches_have_the_masks_of_as_many_replicas(self, run_steps, random_backbone):
    """The same in both passes, and of their own: as two replicas draw them."""
    changes = {**TOGETHER, "model.backbone": random_backbone}
    one, _, _ = run_steps(2, changes=changes, accumulate_steps=2)
    two, _, _ = run_steps(2, 2, {**changes, "train.ranking_scope": "global"})
    assert difference(one, two) <= NOISE

  @pytest.mark.slow
  def test_rankings_of_their_own_differ(self, run_steps, whole):
    """What the test above would not see without "global"."""
    weights, _, _ = run_steps(2, 2, TOGETHER)
    assert difference(weights, whole[0]) > 10 * NOISE


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compiled_equals_uncompiled_after_20_steps(
  run_steps, random_backbone, replicas
):
  """With drop-connect, whose masks are the same too."""
  changes = {"train.loss_options": {}, "model.backbone": random_backbone}
  found = {
    jit_compile: run_steps(20, replicas, {**changes, "train.jit_compile": jit_compile})
    for jit_compile in ("never", "always")
  }
  assert difference(found["never"][0], found["always"][0]) <= NOISE
  np.testing.assert_allclose(found["never"][1], found["always"][1], rtol=1e-5)
  for _, _, training_step in found.values():
    assert training_step._execute.experimental_get_tracing_count() == 1
  assert not compiled_functions(found["never"][2])
  # TensorFlow keeps int32 variables on the host, where a GPU's compiled step cannot read.
  (concrete,) = found["always"][2]._execute._list_all_concrete_functions()
  assert "int32" not in {variable.dtype.name for variable in concrete.variables}
  names = compiled_functions(found["always"][2])
  assert any("forward_rank_backward" in name for name in names)
  assert not any("update" in name or "optimizer" in name.lower() for name in names)


def compiled_functions(training_step):
  """Names of the functions in a step's graph that XLA compiles."""
  (concrete,) = training_step._execute._list_all_concrete_functions()
  graph = concrete.graph.as_graph_def(add_shapes=False)
  return {
    function.signature.name
    for function in graph.library.function
    if function.attr["_XlaMustCompile"].b
  }


def test_replicas_draw_masks_of_their_own(make_strategy):
  strategy = make_strategy(2)
  with strategy.scope():
    feed = step.Feed()

  @tf.function
  def draw(seed, number):
    feed.set(0.1, seed, number)
    return strategy.run(feed.draw_seed)

  def seeds(seed, number):
    found = draw(tf.constant(seed), tf.constant(number))
    return [tuple(x.numpy()) for x in strategy.experimental_local_results(found)]

  drawn = [*seeds(3, 7), *seeds(3, 8), *seeds(4, 7)]
  assert len(set(drawn)) == 6
  assert seeds(3, 7) == drawn[:2]
