import functions_framework


@functions_framework.http
def hello(request):
    return {"hello": request.get_json()["name"]}
