"""An ordinary FastAPI application. Only the last line knows that it runs as a function; it is served on the function URL."""

from fastapi import FastAPI
from mangum import Mangum
from pydantic import BaseModel

app = FastAPI(title="Guestbook")


class Entry(BaseModel):
    name: str
    message: str


@app.get("/")
def index() -> dict[str, str]:
    return {"hello": "from FastAPI", "try": "POST /entries"}


@app.post("/entries", status_code=201)
def sign(entry: Entry) -> dict[str, str | int]:
    return {"from": entry.name, "letters": len(entry.message)}


handler = Mangum(app, lifespan="off")
