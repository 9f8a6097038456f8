"""The sentences a user reads, and the names of things. British spelling, short sentences, the field's words.

A file per screen or subject, and each sentence in one of them. They are used as `text.NAME`, so no two files have a
name in common. Errors of the engine, and of checks of what was sent, bring their words with them.
"""

from app.text.align import *
from app.text.attack import *
from app.text.choose import *
from app.text.compare import *
from app.text.errors import *
from app.text.figures import *
from app.text.fit import *
from app.text.names import *
from app.text.own_model import *
from app.text.page import *
from app.text.runs import *
from app.text.study import *
