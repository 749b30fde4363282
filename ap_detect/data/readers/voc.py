"""Reads detection data in the layout of PASCAL VOC, and in the looser ones of XML files."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
from typing import NamedTuple

from ap_detect.data.readers import (
  folders,
  image_files,
  image_lists,
  split_names,
  voc_xml,
)
from ap_detect.data.readers.listing import Listing, is_below
from ap_detect.data.records import DataError

_ANNOTATION_FOLDERS = ("annotations", "annots", "annotation", "xmls", "xml", "labels")
_IMAGE_FOLDERS = ("jpegimages", "images", "imgs", "image", "img", "data")

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

# The second column of VOC's files of one class, such as cat_train.txt.
_CLASS_COLUMN = re.compile(r"\s+(-1|0|1)$")

_SPLIT_NAMES = ["data.train_split and data.val_split name the splits to read"]

_NEGATIVES = (
  "data.unannotated_are_negatives=True takes images without annotation, or with an empty "
  "file, for images without objects"
)


class VocFolder(NamedTuple):
  """A folder in VOC's layout.

  Attributes:
    path: of the folder.
    annotations: folder of the XML files; "" where there is none.
    images: folder of the images; the folder itself where it has none for them.
    lists: dict of a split's name to the paths of the files that list it: one, or all
      those of single classes that are united.
    class_lists: names of the lists of single classes, such as "cat_train".
  """

  path: str
  annotations: str
  images: str
  lists: dict[str, list[str]]
  class_lists: frozenset[str]

  def split_names(self):
    """Names of the splits, without those of single classes."""
    return [name for name in self.lists if name not in self.class_lists]


class _Entry(NamedTuple):
  """An image of a split: its id, its XML file, its image where that is known already."""

  image_id: str
  annotation: str | None
  image: str | None


def read_voc(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  one_based_inclusive=False,
  unannotated_are_negatives=False,
  skip_faulty=False,
  listing=None,
  **image_options,
):
  """One split of a dataset in VOC's layout, or of XML files and images without lists.

  VOC's layout: Annotations/<stem>.xml, JPEGImages/<stem>.jpg (or another image, else what
  the XML names) and ImageSets/Main/<split>.txt, or ImageSets/<split>.txt, with one image
  a line, by its stem or path. Lines may have the second column of VOC's files of one
  class, which is not used. Where there are only such files, cat_train.txt and
  dog_train.txt, their images together are the split "train". Names of folders count
  without regard to case; "annots" or "labels" and "images" are as good.

  Without lists, every XML file below the root that is an annotation is paired with the
  image of its stem, else with the one that it names, the nearest one of several, but none
  in a folder of another split. Folders named for splits ("train", "Valid", "test_images")
  are these; without any, all is "train".

  A split none of whose images has an XML file, such as PASCAL's test split of 2012, is
  read without labels, from its images alone. Annotations may then be absent.

  Args:
    root: folder that holds all this, in itself or below.
    split: name of the split; see split_names.choose for others of the same meaning.
    image_list: path of a text file that names the images to take out of the split, one
      stem or file name a line; nothing else is looked at. None takes all.
    class_names: names of classes 1..K; any other class is then a fault. None takes all
      names in the annotations, whatever the split, sorted; not for a split without
      labels.
    one_based_inclusive: how boxes are written. False: as plain coordinates of the
      box's edges, which is how labelImg and its like write them. True: by the first
      and last row and column of pixels, counted from 1, which is the VOC devkit's rule;
      the box is then [ymin - 1, xmin - 1, ymax, xmax]. For the official VOC folders.
    unannotated_are_negatives: whether images without XML file, or with an empty one, are
      images without objects, not faults.
    skip_faulty: whether faulty objects and images are left out and reported, instead
      of raising; see image_files.make_records. What concerns the whole split is raised
      all the same.
    listing: Listing of the root, where there is one already.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with stems as image ids (paths where stems repeat). Images without
    objects are kept; difficult objects are ignored; boxes that reach past an edge of
    their image are clipped.

  Raises:
    DataError: lists all faults, each with file, object (from 1) and reason;
      coordinates in it are continuous.
    ValueError: class_names has a name twice.
  """
  listing = listing or Listing(root)
  notes = image_files.Notes()
  faults: list[str] = []
  found = _find_entries(
    listing, split, notes, faults, with_images_alone=unannotated_are_negatives
  )
  entries = found.entries
  if image_list is not None:
    entries = _choose_entries(entries, image_list, faults)
  has_labels = (
    not entries
    or unannotated_are_negatives
    or any(entry.annotation and os.path.isfile(entry.annotation) for entry in entries)
  )
  if class_names is None:
    if not has_labels:
      raise DataError(
        [
          *faults,
          f"{listing.relative(found.source)}: none of its images has an XML file; a "
          "split without labels requires data.class_names",
        ]
      )
    class_names = _find_class_names(listing, found.annotations)
  class_ids = image_files.number_classes(class_names)
  annotated: list[image_files.AnnotatedImage] = []
  read_image = functools.partial(
    _read_image,
    listing,
    found,
    class_ids=class_ids,
    one_based_inclusive=one_based_inclusive,
    notes=notes,
    has_negatives=unannotated_are_negatives or not has_labels,
  )
  for entry in entries:
    image, reasons = read_image(entry)
    source = listing.relative(image.annotation)
    faults.extend(f"{source}: {reason}" for reason in reasons)
    annotated.append(image)
  return image_files.make_dataset(
    annotated,
    faults,
    class_ids,
    root=listing.root,
    skip_faulty=skip_faulty,
    has_labels=has_labels,
    notes=notes.lines(),
    advice=_advise(annotated, faults, one_based_inclusive),
    **image_options,
  )


def find_folders(listing: Listing) -> list[VocFolder]:
  """Folders in VOC's layout; those without annotations only where there are no others."""
  by_folder: dict[str, list[str]] = collections.defaultdict(list)
  for path in listing.annotation_files(".txt"):
    parts = listing.relative(path).split(os.sep)
    lower = [part.lower() for part in parts[:-1]]
    if "imagesets" in lower:
      top = os.path.join(listing.root, *parts[: lower.index("imagesets")])
      by_folder[top].append(path)
  found = [_make_folder(path, lists) for path, lists in by_folder.items()]
  return [folder for folder in found if folder.annotations] or found


def find_pairs(listing: Listing) -> dict[str, list[str]]:
  """Annotations without lists: dict of a split's name to paths of XML files."""
  by_folder: dict[str, list[str]] = collections.defaultdict(list)
  for path in listing.annotation_files(".xml"):
    by_folder[os.path.dirname(path)].append(path)
  splits: dict[str, list[str]] = collections.defaultdict(list)
  for paths in by_folder.values():
    # One look suffices: the others are faults where they are something else.
    if not any(map(voc_xml.is_annotation, paths)):
      continue
    for path in paths:
      splits[_split_of(listing, path)].append(path)
  if list(splits) == [""]:
    return {"train": splits[""]}
  return dict(splits)


def _split_of(listing, path):
  """The split of an XML file, by its own folders or else by its image's; "" for none."""
  own = listing.split_of(path)
  if own or not listing.image_splits:
    return own
  try:
    image = listing.find_image(_stem(path), near=path)
  except ValueError:
    image = None
  return listing.split_of(image) if image else ""


def _make_folder(path, lists):
  """VocFolder of a folder and the files in its ImageSets."""
  folder_names = [entry.name for entry in os.scandir(path) if entry.is_dir()]

  def first(names):
    by_name = {name.lower(): name for name in sorted(folder_names, reverse=True)}
    return next((by_name[name] for name in names if name in by_name), "")

  def name_in(top, list_path):
    parts = os.path.relpath(list_path, top).split(os.sep)
    return os.sep.join(parts[1:])[: -len(".txt")]

  image_sets = os.path.join(path, first(["imagesets"]))
  in_main = [p for p in lists if name_in(path, p).lower().startswith("main" + os.sep)]
  if in_main:
    names = {name_in(image_sets, p): [p] for p in in_main}
  else:
    names = {name_in(path, p): [p] for p in lists if os.path.dirname(p) == image_sets}
  united: dict[str, list[str]] = collections.defaultdict(list)
  for name, (list_path,) in names.items():
    split = name.rpartition("_")[2]
    if split != name and _is_class_list(list_path):
      united[split].append(list_path)
  class_lists = {
    name for name, paths in names.items() if any(paths[0] in p for p in united.values())
  }
  united = {split: paths for split, paths in united.items() if split not in names}
  annotations = first(_ANNOTATION_FOLDERS)
  return VocFolder(
    path,
    os.path.join(path, annotations) if annotations else "",
    os.path.join(path, first(_IMAGE_FOLDERS)).rstrip(os.sep),
    {**names, **united},
    frozenset(class_lists),
  )


def _is_class_list(path):
  """Whether all lines of a list have the column of a class."""
  try:
    lines = [line for _, line in image_lists.read_lines(path, path)]
  except DataError:
    return False
  return all(map(_CLASS_COLUMN.search, lines))


class _Found(NamedTuple):
  """Where a split is: its images, and what they are looked for by.

  Attributes:
    entries: list of _Entry.
    source: path of the file or folder that says which images there are.
    annotations: folder whose XML files have the classes; "" for all below the root.
    images: folder of the images; "" for all below the root.
  """

  entries: list[_Entry]
  source: str
  annotations: str
  images: str


def _find_entries(listing, split, notes, faults, *, with_images_alone):
  """_Found of a split; notes and faults are extended."""
  found = find_folders(listing)
  if found:
    folder, name = _choose_folder(listing, found, split)
    return _read_lists(listing, folder, name, notes, faults)
  splits = find_pairs(listing)
  names = split_names.choose(splits, split, sole=True)
  if len(names) != 1:
    raise DataError([_describe_missing_pairs(listing, split, splits)], _SPLIT_NAMES)
  (name,) = names
  if name and splits.get(""):
    kind = "XML files are not read, for they lie in no split's folder as others do"
    for path in splits[""]:
      notes.add(kind, listing.relative(path))
  paths = splits[name]
  entries = _pair(listing, paths)
  if with_images_alone:
    entries += _images_alone(listing, name, splits)
  top = os.path.commonpath([os.path.dirname(path) for path in paths])
  return _Found(entries, top, "", "")


def _choose_folder(listing, found, split):
  """(VocFolder, name of the split in it)."""
  root = listing.root
  with_split = []
  for folder in found:
    names = split_names.choose([*folder.lists], split)
    if split not in folder.lists:
      # Nothing but a split itself is taken for one of another name.
      names = [name for name in names if name not in folder.class_lists]
    if not names and len(found) == 1:
      names = split_names.choose(folder.split_names(), split, sole=True)
    with_split += [(folder, name) for name in names]
  if len(with_split) == 1:
    return with_split[0]
  if with_split:
    (first, _), *_ = with_split
    paths = dict.fromkeys(folder.path for folder, _ in with_split)
    if len(paths) == 1:
      there = ", ".join(name for _, name in with_split)
      raise DataError([f"{first.path}: the split {split!r} could be any of {there}"])
    raise DataError(
      [
        f"{root}: {len(paths)} folders have the split {split!r}: "
        f"{', '.join(paths)}; give one of them as root, or before the split, as "
        f"in {os.path.relpath(first.path, root)}/{split}"
      ]
    )
  raise DataError(
    [
      f"{os.path.join(folder.path, 'ImageSets', 'Main', split)}.txt: there is no such "
      f"split; {folders.some_names(sorted(folder.lists)) or 'none'} exist"
      for folder in found
    ],
    _SPLIT_NAMES,
  )


def _describe_missing_pairs(listing, split, splits):
  if not splits:
    return (
      f"{listing.root}: no XML file below it is an annotation of VOC's kind, and no "
      f"folder has ImageSets; there is {listing.describe()}"
    )
  there = ", ".join(repr(name) for name in splits if name) or "none"
  return (
    f"{listing.root}: no folder is named for the split {split!r}; of the annotations' "
    f"and images' folders, the splits are {there}"
  )


def _read_lists(listing, folder, name, notes, faults):
  """_Found of a split that files list."""
  first_places: dict[str, str] = {}
  for path in folder.lists[name]:
    source = listing.relative(path)
    for number, line in image_lists.read_lines(path, source):
      place = f"{source}: line {number}"
      try:
        stem = _read_stem(line, folder, listing)
      except ValueError as error:
        faults.append(f"{place}: {error}")
        continue
      first = first_places.setdefault(stem, place)
      if first != place and len(folder.lists[name]) == 1:
        notes.add(
          "lines of lists name an image again, and are passed over",
          f"{place}: {stem!r}, as line {first.rpartition(' ')[2]}",
        )
  entries = [
    _Entry(stem, _annotation(listing, folder.annotations or folder.path, stem), None)
    for stem in first_places
  ]
  return _Found(
    entries, folder.lists[name][0], folder.annotations or folder.path, folder.images
  )


def _read_stem(line, folder, listing):
  """The stem that a line names; ValueError if it leaves the folder.

  Lines may also be paths, from any folder, and have the image's extension.
  """
  line = line.replace("\\", "/")
  # A stem may itself end like a column: "cell 1".
  texts = [line, _CLASS_COLUMN.sub("", line)]
  texts += [re.sub(r"\.(jpe?g|png|bmp|gif|xml)$", "", t, flags=re.I) for t in texts]
  tails = [
    "/".join(parts[start:])
    for text in texts
    for parts in [[part for part in text.split("/") if part != "."]]
    for start in range(len(parts))
  ]
  for stem in dict.fromkeys(sorted(tails, key=lambda tail: -tail.count("/"))):
    if not stem or "\0" in stem or folders.leaves_folder(stem):
      continue
    annotation = _annotation(listing, folder.annotations, stem)
    if folder.annotations and os.path.lexists(annotation):
      listing.check_inside(annotation)
      return stem
    if any(os.path.lexists(os.path.join(folder.images, stem + e)) for e in _EXTENSIONS):
      return stem
  stem = texts[-1]
  folders.path_inside(folder.path, f"{stem}.xml", [os.path.realpath(folder.path)])
  return stem


def _annotation(listing, folder, stem):
  """Path of the XML file of a stem, which may be written in another case."""
  path = os.path.join(folder, f"{stem}.xml")
  return path if os.path.lexists(path) else listing.find(path) or path


def _pair(listing, paths):
  """Entries of XML files that no list names; image ids are stems where these differ."""
  counts = collections.Counter(map(_stem, paths))
  return [
    _Entry(
      _stem(path)
      if counts[_stem(path)] == 1
      else os.path.splitext(listing.relative(path))[0],
      path,
      None,
    )
    for path in paths
  ]


def _images_alone(listing, name, splits):
  """Entries of images that no XML file has the name of, of a split's folders."""
  known = {_stem(path).lower() for paths in splits.values() for path in paths}
  entries = []
  for image in listing.images:
    split = listing.split_of(image)
    is_of_split = split == name or (not split and len(splits) == 1)
    if is_of_split and _stem(image).lower() not in known:
      image_id = os.path.splitext(listing.relative(image))[0]
      entries.append(_Entry(image_id, None, image))
  return entries


def _stem(path):
  return os.path.splitext(os.path.basename(path))[0]


def _choose_entries(entries, image_list, faults):
  """The entries that a list names, in the split's order; faults is extended."""
  names = [
    (entry.image_id, *(entry.image_id + extension for extension in _EXTENSIONS))
    for entry in entries
  ]
  chosen, more_faults = image_lists.choose_images(image_list, names)
  faults += more_faults
  return [entry for index, entry in enumerate(entries) if index in chosen]


def _find_class_names(listing, top):
  """Names of all classes in the annotations, sorted.

  Files that cannot be read are passed over: where the split needs them, reading the
  split says so.
  """
  names: set[str] = set()
  for path in listing.annotation_files(".xml"):
    if not is_below(path, top):
      continue
    try:
      names |= voc_xml.class_names(voc_xml.parse(listing.check_inside(path)))
    except ValueError:
      continue
  return sorted(names)


def _read_image(
  listing,
  found,
  entry,
  *,
  class_ids,
  one_based_inclusive,
  notes,
  has_negatives,
):
  """(image_files.AnnotatedImage, reasons of its faults)."""
  path = entry.annotation
  is_negative = has_negatives and (
    path is None or not os.path.isfile(path) or voc_xml.is_empty(path)
  )
  annotation, size, reasons = None, None, []
  if not is_negative:
    (annotation,), reasons = image_files.read_parts(path, [voc_xml.parse])
  if annotation is not None:
    (size,), more_reasons = image_files.read_parts(annotation, [voc_xml.read_size])
    reasons += more_reasons
  named = voc_xml.text(annotation, "filename") if annotation is not None else ""
  (image_path,), more_reasons = image_files.read_parts(
    entry, [lambda entry: _find_image(listing, found, entry, named)]
  )
  image = image_files.AnnotatedImage(
    entry.image_id,
    image_path,
    found.source if is_negative else path,
    size,
    faulty=bool(reasons or more_reasons),
  )
  objects = []
  if annotation is not None:
    objects, faults = voc_xml.read_objects(
      annotation,
      class_ids,
      one_based_inclusive=one_based_inclusive,
      notes=notes,
      source=listing.relative(path),
    )
    more_reasons += faults
  return dataclasses.replace(image, objects=objects), [*reasons, *more_reasons]


def _find_image(listing, found, entry, named):
  """Path of an image, by the stem or else by what the annotation names.

  The stem comes first: tools that rename files leave the old name in the XML.
  """
  if entry.image is not None:
    return listing.check_inside(entry.image)
  if not found.images:  # no list: the stem is the XML file's
    path = listing.find_image(_stem(entry.annotation), near=entry.annotation)
    path = path or (named and listing.find_image(named, near=entry.annotation))
    if path:
      return _of_same_split(listing, path, entry.annotation)
    raise ValueError(
      f"has no image: none below {listing.root} has the name "
      f"{named or _stem(entry.annotation)!r}, or several have, in no nearer folder; "
      "data.images names the folder of the images"
    )
  names = [entry.image_id + extension for extension in _EXTENSIONS]
  names += [named] if named and not folders.leaves_folder(named) else []
  for name in names:
    path = os.path.join(found.images, name)
    if os.path.lexists(path):
      return listing.check_inside(path)
  for name in filter(None, (entry.image_id, named)):
    path = listing.find_image(name, near=found.images, below=found.images)
    if path:
      return path
  if named:
    folders.path_inside(found.images, named, [os.path.realpath(found.images)])
  return os.path.join(found.images, named or names[0])


def _of_same_split(listing, image, annotation):
  """The image; ValueError where the folders of the two are of different splits."""
  own, other = listing.split_of(annotation), listing.split_of(image)
  if own and other and own != other:
    raise ValueError(
      f"is in a folder of split {own!r}, but the only image of its name in one of "
      f"{other!r}: {listing.relative(image)}"
    )
  return image


def _advise(annotated, faults, one_based_inclusive):
  """What may be behind some faults."""
  boxes = [item.box for image in annotated for item in image.objects if item.box]
  advice = []
  if not one_based_inclusive and any(
    ymin == ymax or xmin == xmax for ymin, xmin, ymax, xmax in boxes
  ):
    advice.append(
      "data.voc_one_based_inclusive=True makes boxes a pixel larger; right where they "
      "include their last pixel, as in PASCAL's own files"
    )
  if any(
    fault.endswith(".xml: there is no such file") or "no element found" in fault
    for fault in faults
  ):
    advice.append(_NEGATIVES)
  return advice
