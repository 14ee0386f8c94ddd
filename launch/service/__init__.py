"""In: requests over HTTP. Out: jobs in tables, trainers in run folders, and their news as events.

states.py (pure) < tables.py, store.py < dispatch.py, watch.py, supervise.py < the routers, app.py
"""
