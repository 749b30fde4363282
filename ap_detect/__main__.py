"""python -m ap_detect: the same as the command ap_detect."""

from ap_detect import commands

if __name__ == "__main__":
  commands.main()
