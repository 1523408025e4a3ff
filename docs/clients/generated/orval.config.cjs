module.exports = {
  shop: {
    input: "./openapi.json",
    output: { target: "./orval.ts", client: "fetch", baseUrl: process.env.API, headers: true },
  },
};
