"""HTTP for a lab that runs: a process of its own, and a client of the lab's control socket. It never stops a frame.

    browser, curl -> guard -> route -> door -> control socket -> the lab's desk

guard     who may ask: hosts, origins, token, size of bodies
door      how questions reach the lab: few at a time, with a time limit
methods   POST /api/METHOD for each request there is, and GET /snapshot
stream    GET /events: what happens, as it happens
app       all of it together, and where further pages are added
serve     the process
"""
