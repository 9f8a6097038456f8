"""The sentences a user reads, and the names of things. British spelling, short sentences, the field's words.

One file per screen or subject; each sentence is in one file. They are used as `text.NAME`, so names are unique over all
files. Errors of the engine, and of checks of arguments, have their own words.
"""

from app.text.align import *
from app.text.attack import *
from app.text.choose import *
from app.text.compare import *
from app.text.errors import *
from app.text.figures import *
from app.text.findings import *
from app.text.fit import *
from app.text.names import *
from app.text.own_model import *
from app.text.page import *
from app.text.runs import *
from app.text.sweep import *
