import sys
from pathlib import Path

# the zoo is also a program, so its files import each other as scripts do
sys.path.insert(0, str(Path(__file__).parent))
