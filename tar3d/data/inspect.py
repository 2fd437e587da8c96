"""The command `python -m tar3d.data.inspect`; its code is in `tar3d/data/validate/`."""

import sys

from tar3d.data.validate.inspect import main

if __name__ == "__main__":
    sys.exit(main())
