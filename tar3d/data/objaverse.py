"""The command `python -m tar3d.data.objaverse`; its code is in `tar3d/data/prepare/`."""

import sys

from tar3d.data.prepare.objaverse import main

if __name__ == "__main__":
    sys.exit(main())
