"""Lightning's loggers, continued by a resumed run: the same run in the same place, and no point twice."""
