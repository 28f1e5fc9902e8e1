"""Which files a corpus has, and their rows: nothing here knows what a column means."""
