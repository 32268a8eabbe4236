// The viewer of the API's documentation. It sends the key that the page at / was given, if there is one.
"use strict";

window.addEventListener("DOMContentLoaded", () => {
  const key = sessionStorage.getItem("sglang.key");
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (key) request.headers.Authorization = `Bearer ${key}`;
      return request;
    },
  });
});
