"""Tables of methods side by side: every row an ordinary run, all of them at one budget of turns."""
