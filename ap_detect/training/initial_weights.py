"""The weights that a new run starts from: another run's, as far as they fit."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import trackable_object_graph_pb2

from ap_detect.runs import folder


class _Stored(NamedTuple):
  """A variable in a checkpoint.

  Attributes:
    name: the variable's own, "fpn_lateral3/kernel".
    shape: list of integers.
    key: what the checkpoint calls its value.
  """

  name: str
  shape: list
  key: str


def load_initial_weights(network, path):
  """Gives a network the weights of another run's network, as far as they fit.

  The backbone must be the same and is loaded as a whole. The layers of the pyramid and
  of the heads are matched by name; one that the checkpoint lacks or has in other shapes,
  as the class head's output for another number of classes, stays as it is and is listed
  in the log. Class k starts as the other run's class k, whatever their names.

  Args:
    network: see runs.model.build_network. Its variables are set on all replicas.
    path: a run's folder, for its best checkpoint (the latest where none was evaluated
      yet), or a checkpoint's path, see runs.folder.find_checkpoint.

  Raises:
    ValueError: there is no such checkpoint, or it is of another backbone; the network
      is as it was.
  """
  path = _find_checkpoint(path)
  reader = tf.train.load_checkpoint(path)
  graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
    reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
  )
  stored = _stored_variables(graph, reader.get_variable_to_shape_map())
  loaded = _match_backbone(network, graph, stored, path)
  in_backbone = {variable.ref() for variable, _ in loaded}
  keys = {entry.key for _, entry in loaded}
  loaded += _match_by_name(
    [variable for variable in network.variables if variable.ref() not in in_backbone],
    [entry for entry in stored.values() if entry.key not in keys],
  )
  for variable, entry in loaded:
    variable.assign(reader.get_tensor(entry.key))
  logging.info(
    "loaded %d of %d variables from %s", len(loaded), len(network.variables), path
  )


def _find_checkpoint(path):
  is_run = os.path.exists(os.path.join(path, folder.CONFIG))
  model_dir, checkpoint = (path, "") if is_run else ("", path)
  try:
    return folder.find_checkpoint(model_dir, checkpoint)
  except ValueError as error:
    raise ValueError(f"model.initial_checkpoint: {error}") from error


def _stored_variables(graph, shapes):
  """{node of the checkpoint's object graph: _Stored} of the network's variables."""
  return {
    node_id: _Stored(
      value.full_name, shapes[value.checkpoint_key], value.checkpoint_key
    )
    for node_id, node in enumerate(graph.nodes)
    for value in node.attributes
    if value.checkpoint_key.startswith("network/")
    and "/.OPTIMIZER_SLOT/" not in value.checkpoint_key
  }


def _match_backbone(network, graph, stored, path):
  """[(variable, _Stored)] of all the backbone's variables, by their place in the network.

  Their names will not do: in some backbones they count up from network to network of a
  process. Without the numbers they tell whether both backbones are the same.
  """
  backbone = next(
    layer for layer in network.layers if isinstance(layer, tf.keras.Model)
  )
  partners = {
    found.ref(): stored[node_id]
    for node_id, found in _match_places(tf.train.Checkpoint(network=network), graph)
    if node_id in stored and isinstance(found, tf.Variable)
  }
  matched = [
    (variable, partners.get(variable.ref())) for variable in backbone.variables
  ]
  for variable, entry in matched:
    name = _name(variable)
    if (
      entry is None
      or not _fits(variable, entry)
      or _letters(name) != _letters(entry.name)
    ):
      raise ValueError(
        f"model.initial_checkpoint: {path} holds another backbone: in the place of "
        f"{name} {list(variable.shape)} it has "
        + (f"{entry.name} {entry.shape}" if entry else "nothing")
      )
  return matched


def _match_places(root, graph):
  """[(node, object under root)] of what has the same place in the graph of a checkpoint."""
  view = tf.train.TrackableView(root)
  matched = {0: root}
  to_visit = [0]
  for node_id in to_visit:
    children = view.children(matched[node_id])
    for child in graph.nodes[node_id].children:
      if child.local_name in children and child.node_id not in matched:
        matched[child.node_id] = children[child.local_name]
        to_visit.append(child.node_id)
  return matched.items()


def _match_by_name(variables, entries):
  """[(variable, _Stored)] of the layers that fit; the rest of both goes to the log."""
  here = {_name(variable): variable for variable in variables}
  there = {entry.name: entry for entry in entries}
  misfits = {
    _layer(name)
    for name, variable in here.items()
    if name not in there or not _fits(variable, there[name])
  }
  if "box_head_output" in misfits:
    # For another number of anchors a cell, the class head's outputs are others even
    # where there are as many: 6 anchors x 3 classes, 9 x 2.
    misfits.add("class_head_output")
  loaded = [name for name in here if _layer(name) not in misfits]
  for name in sorted((here.keys() | there.keys()).difference(loaded)):
    logging.info(
      "not loaded: %s, in the checkpoint %s, here %s",
      name,
      there[name].shape if name in there else "absent",
      list(here[name].shape) if name in here else "absent",
    )
  return [(here[name], there[name]) for name in loaded]


def _fits(variable, entry):
  return entry.shape == list(variable.shape)


def _name(variable):
  return variable.name.split(":")[0]


def _layer(name):
  return name.rpartition("/")[0]


def _letters(name):
  return re.sub(r"_?\d+", "", name)
