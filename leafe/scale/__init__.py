"""More than this process: workers that hold many worlds, or one replica of the engine, in processes here or in actors of a Ray cluster.

A worker may end at any moment. Its worlds are then rebuilt in another by verified replay, and requests to an engine are repeated, so
the results stay the same. Ray is imported in `cluster.py` and nowhere else.
"""
