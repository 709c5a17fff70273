"""Text games of the planning kind in pure Python: a PDDL domain, a problem and a text grammar, played on one integer.

The game files are those of TextWorld's planning games, of which ALFWorld's are the best known. `gamefile` reads them, `expressions`,
`formulas` and `domain` understand their PDDL, `grammar` and `symbols` their texts; `facts` and `grounding` turn predicates into bits,
`telling` turns bits into words, `game` plays and `planner` solves. `environment` is what the environments here share.
"""
