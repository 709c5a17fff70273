"""ScienceWorld in its original simulator, one Java process an episode, with flags that make a replay exact."""
