"""python -m imgrec.models: what `model=` can select."""

import sys

from imgrec.models.listing import main

if __name__ == "__main__":
    sys.exit(main())
