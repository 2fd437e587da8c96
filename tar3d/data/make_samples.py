"""The command `python -m tar3d.data.make_samples`; its code is in `tar3d/data/prepare/`."""

import sys

from tar3d.data.prepare.make_samples import main

if __name__ == "__main__":
    sys.exit(main())
