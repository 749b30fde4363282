"""The same as `ap_detect evaluate`, from a checkout."""

from ap_detect import commands

if __name__ == "__main__":
  commands.run("evaluate")
