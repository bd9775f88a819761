// Swagger UI 5.35.0 (npm swagger-ui-dist), served from the package; no validator badge, so no request leaves the host.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  tryItOutEnabled: true,
});
