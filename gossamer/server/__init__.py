"""The functions over HTTP, on this machine: FastAPI, one worker, a workspace; no science in it.

wire, answers   what is asked and what is answered, as typed JSON
values          from the wire to Python's values, and back
worker          one thread that computes; analyses that wait together share a pass
jobs, store     long work, and what survives a restart
gate, faults    who may ask, and what a mistake looks like
routes, app     one route for each verb, and all of them together
"""
