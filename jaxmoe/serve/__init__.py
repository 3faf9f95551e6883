"""Speech to text and German over HTTP, for one machine or one house: OpenAI's audio API and a page for the browser.

guard.py lets requests in, request.py reads them, worker.py waits in line, engine.py holds the models, answer.py writes
what OpenAI's API would, app.py joins these, page.py is what a browser sees.
"""
