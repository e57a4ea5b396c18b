"""python -m bench.sm90"""

from bench.sm90.command import main

if __name__ == "__main__":
    main()
