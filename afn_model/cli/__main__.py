"""``python -m afn_model.cli`` is ``afn``."""

from afn_model.cli import main

raise SystemExit(main())
