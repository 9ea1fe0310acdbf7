"""Code that several tests share: problems, models, backends, loops.  `tests` is on pytest's path (pyproject.toml)."""
