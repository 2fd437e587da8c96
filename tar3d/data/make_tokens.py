"""The command `python -m tar3d.data.make_tokens`; its code is in `tar3d/data/tokens/`."""

import sys

from tar3d.data.tokens.make_tokens import main

if __name__ == "__main__":
    sys.exit(main())
