"""The command `python -m tar3d.data.toy`; its code is in `make_toy.py`."""

import sys

from tar3d.data.toy.make_toy import main

if __name__ == "__main__":
    sys.exit(main())
