"""A dataset that stops being read in the middle of a run."""
from bafe_nb import scenes


class Stopping:
    """Scenes that fail at the k-th reading, as a pulled plug would."""
    def __init__(self, n, k): self.scenes, self.left, self.names = scenes.Scenes(n), k, scenes.Scenes(n).names
    def __len__(self): return len(self.scenes)

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt
        return self.scenes[i]
