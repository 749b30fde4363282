"""ap_detect.data.readers.image_files and .folders: headers, decoding, boxes, paths."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from ap_detect.data import image_headers, summary
from ap_detect.data.readers import folders, image_files
from ap_detect.training import evaluation_files


@pytest.mark.parametrize(
  ("name", "mode", "options"),
  [
    ("rgb.jpg", "RGB", {}),
    ("progressive.jpg", "RGB", {"progressive": True}),
    ("grey.jpg", "L", {}),
    ("cmyk.jpg", "CMYK", {}),
    ("rgb.png", "RGB", {}),
    ("grey.png", "L", {}),
    ("grey_alpha.png", "LA", {}),
    ("alpha.png", "RGBA", {}),
    ("palette.png", "P", {}),
    ("bits.png", "1", {}),
    ("sixteen_bits.png", "I;16", {}),
    ("rgb.bmp", "RGB", {}),
    ("alpha.bmp", "RGBA", {}),
    ("palette.gif", "P", {}),
    ("png_inside.jpg", "RGB", {"image_format": "PNG"}),
    ("jpeg_inside.png", "RGB", {"image_format": "JPEG"}),
  ],
)
def test_images_of_any_colour_are_sound(tmp_path, write_image, name, mode, options):
  path = str(write_image(tmp_path / name, 20, 30, mode, **options))
  headers, faults = image_files.read_headers([path])
  assert (headers[path].height, headers[path].width, faults) == (20, 30, {})
  assert image_files.find_undecodable(headers) == {}


@pytest.mark.parametrize("image_format", ["TIFF", "WEBP"])
def test_other_formats_are_faults(tmp_path, write_image, image_format):
  path = str(write_image(tmp_path / "a.jpg", image_format=image_format))
  headers, faults = image_files.read_headers([path])
  assert headers == {}
  assert faults[path].lower().startswith(f"is {image_format}, which is not".lower())


def test_folder_or_pipe_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
  paths = [str(tmp_path), str(tmp_path / "pipe.jpg")]
  reason = "there is no such file"
  assert image_files.read_headers(paths) == ({}, dict.fromkeys(paths, reason))


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_damaged_headers_are_faults(tmp_path, start):
  random = np.random.default_rng(0)
  tails = [b"", b"\xe0", bytes(40)]
  tails += [random.integers(0, 256, 200, np.uint8).tobytes() for _ in range(50)]
  paths = []
  for number, tail in enumerate(tails):
    paths.append(str(tmp_path / f"{number}.jpg"))
    (tmp_path / f"{number}.jpg").write_bytes(start + tail)
  headers, faults = image_files.read_headers(paths)
  assert headers.keys() | faults.keys() == set(paths)
  assert set(image_files.find_undecodable(headers)) == set(headers)


def test_header_claiming_no_pixels(tmp_path, write_huge_png):
  path = str(write_huge_png(tmp_path / "a.png", 0, 5))
  (reason,) = image_files.read_headers([path])[1].values()
  assert reason.startswith("its header cannot be read: ")


def test_large_images_pass_where_the_limit_allows(tmp_path, write_huge_png):
  # Pillow's own limit of about 1.8e8 pixels must not get in the way.
  path = str(write_huge_png(tmp_path / "a.png", 30_000, 20_000))
  headers, faults = image_files.read_headers([path], max_image_pixels=600_000_000)
  assert (headers[path].height, headers[path].width, faults) == (30_000, 20_000, {})


def test_every_undecodable_file_is_found_not_only_the_first(tmp_path, write_image):
  paths = [str(write_image(tmp_path / f"{n}.png", 40, 50)) for n in range(60)]
  broken = paths[3:60:7]
  for number, path in enumerate(broken):
    content = (tmp_path / os.path.basename(path)).read_bytes()
    cut = [content[: len(content) // 2], content[:-20]][number % 2]
    (tmp_path / os.path.basename(path)).write_bytes(cut)
  headers = dict.fromkeys(paths, image_headers.Header("PNG", 40, 50))
  faults = image_files.find_undecodable(headers)
  assert list(faults) == broken
  for reason in faults.values():
    assert reason.startswith("truncated or damaged: Invalid PNG data")
    assert "[Op:" not in reason
  assert image_files.find_undecodable({}) == {}


def test_truncated_jpeg_at_every_length_is_found(tmp_path):
  buffer = io.BytesIO()
  Image.new("RGB", (30, 20), "red").save(buffer, "JPEG")
  content = buffer.getvalue()
  paths = []
  for length in range(0, len(content), 23):
    paths.append(str(tmp_path / f"{length}.jpg"))
    (tmp_path / f"{length}.jpg").write_bytes(content[:length])
  headers, faults = image_files.read_headers(paths)
  faults.update(image_files.find_undecodable(headers))
  assert set(faults) == set(paths)


class TestOrientation:
  """Photos of 20 x 30 stored pixels; the box is the bright patch that is seen."""

  PATCH = (4, 6, 10, 20)

  def annotate(self, tmp_path, orientation, size, box):
    ymin, xmin, ymax, xmax = self.PATCH
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[ymin:ymax, xmin:xmax] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "a.jpg")
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    item = image_files.AnnotatedObject("object 1", box, 1, False)
    return image_files.AnnotatedImage("a", path, "a.xml", size, [item])

  @pytest.mark.parametrize("orientation", range(1, 9))
  def test_boxes_of_the_stored_image_are_turned_with_it(self, tmp_path, orientation):
    image = self.annotate(tmp_path, orientation, (20, 30), self.PATCH)
    (record,) = image_files.make_records([image], faults := [], root=tmp_path)
    assert faults == []
    assert record.boxes_were_turned == (orientation >= 5)
    if orientation < 5:  # the size does not tell: boxes are as the image is seen
      assert record.boxes.tolist() == [list(self.PATCH)]
      return
    assert (record.height, record.width) == (30, 20)
    bright = np.argwhere(evaluation_files.load_pixels(record)[..., 0] > 127)
    seen = [*bright.min(axis=0), *(bright.max(axis=0) + 1)]
    np.testing.assert_array_equal(record.boxes, [seen])
    assert summary.describe_images([record])[1].startswith(
      "1 of these have annotations"
    )

  @pytest.mark.parametrize("size", [None, (30, 20)])
  def test_boxes_of_the_turned_image_are_left(self, tmp_path, size):
    image = self.annotate(tmp_path, 6, size, (1, 2, 29, 19))
    (record,) = image_files.make_records([image], faults := [], root=tmp_path)
    assert faults == []
    assert record.boxes.tolist() == [[1, 2, 29, 19]]
    assert not record.boxes_were_turned
    assert summary.describe_images([record]) == [
      "1 images are turned as their EXIF data says"
    ]

  def test_images_as_stored(self, tmp_path):
    image = self.annotate(tmp_path, 6, (20, 30), self.PATCH)
    (record,) = image_files.make_records(
      [image], faults := [], root=tmp_path, exif_orientation=False
    )
    assert faults == []
    assert (record.height, record.width) == (20, 30)
    assert record.boxes.tolist() == [list(self.PATCH)]
    assert evaluation_files.load_pixels(record).shape == (20, 30, 3)
    assert summary.describe_images([record]) == []

  def test_a_box_outside_the_stored_image_is_named_as_it_is_annotated(self, tmp_path):
    image = self.annotate(tmp_path, 6, (20, 30), (4, 6, 10, 40))
    image_files.make_records([image], faults := [], root=tmp_path)
    assert [fault.split("a.xml: ")[1] for fault in faults] == [
      "object 1 leaves the image of 30 x 20 pixels: x 6 to 40, y 4 to 10"
    ]


def test_check_boxes_clips_up_to_a_tenth_of_the_side_or_a_pixel():
  """Of an image 8 pixels high and 30 wide: up to 1 and up to 3 pixels."""
  boxes = [[-1, -3, 9, 33], [-1.01, 0, 5, 5], [0, -3.01, 5, 5]]
  boxes += [[0, 0, 9.01, 5], [0, 0, 5, 33.01]]
  clipped, reasons = image_files.check_boxes(boxes, 8, 30)
  assert set(reasons) == {1, 2, 3, 4}
  assert clipped[0].tolist() == [0, 0, 8, 30] and clipped.dtype == np.float64


def test_check_boxes_without_boxes():
  clipped, reasons = image_files.check_boxes([], 10, 8)
  assert clipped.shape == (0, 4) and reasons == {}


@pytest.mark.parametrize("name", ["..", "a/../../b", "/a", "", "a\0b", "..\\b"])
def test_path_inside_refuses(tmp_path, name):
  with pytest.raises(ValueError, match="leaves the data folder"):
    folders.path_inside(str(tmp_path), name, [os.path.realpath(tmp_path)])


def test_path_inside_follows_links_to_folders(tmp_path):
  inside, outside = tmp_path / "data", tmp_path / "data_too"
  inside.mkdir()
  outside.mkdir()
  (inside / "link").symlink_to(outside)
  with pytest.raises(ValueError, match="a link that leaves"):
    folders.path_inside(str(inside), "link/a.jpg", [os.path.realpath(inside)])
  allowed = [os.path.realpath(inside), os.path.realpath(outside)]
  assert folders.path_inside(str(inside), "link/a.jpg", allowed)
