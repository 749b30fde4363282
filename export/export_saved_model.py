"""The same as `ap_detect export`, from a checkout."""

from ap_detect import commands

if __name__ == "__main__":
  commands.run("export")
