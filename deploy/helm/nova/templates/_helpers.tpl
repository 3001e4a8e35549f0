{{/* Names start with the release, so that two of them share a namespace. */}}
{{- define "nova.name" -}}{{ printf "%s-%s" .Release.Name .plane | trunc 63 | trimSuffix "-" }}{{- end }}

{{- define "nova.labels" -}}
app.kubernetes.io/name: nova
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .plane }}
{{- end }}

{{- define "nova.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .plane }}-runtime:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Workers and zenith find the comets that registered: each pod by its own address. */}}
{{- define "nova.args" -}}
{{- if eq .plane "nova" -}}
["daemon", "--http", ":9001", "--planes", "control", "--config", "/etc/nova/nova.json"]
{{- else if eq .plane "comet" -}}
["daemon", "--grpc", "0.0.0.0:9090", "--config", "/etc/nova/nova.json"]
{{- else if eq .plane "corona" -}}
["daemon", "--comet-grpc", "auto", "--health-addr", "0.0.0.0:9003", "--config", "/etc/nova/nova.json"]
{{- else if eq .plane "nebula" -}}
["daemon", "--comet-grpc", "auto", "--health-addr", "0.0.0.0:9004", "--config", "/etc/nova/nova.json"]
{{- else if eq .plane "aurora" -}}
["daemon", "--listen", ":9002", "--config", "/etc/nova/nova.json"]
{{- else -}}
["serve", "--listen", ":9000", "--nova-url", "http://{{ .Release.Name }}-nova:9001", "--comet-grpc", "auto", "--config", "/etc/nova/nova.json"]
{{- end }}
{{- end }}

{{/* Zenith and nova answer /health/*, aurora /health, the others grpc.health.v1. */}}
{{- define "nova.probes" -}}
{{- if or (eq .plane "zenith") (eq .plane "nova") -}}
startupProbe:
  httpGet: {path: /health/startup, port: main}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /health/ready, port: main}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /health/live, port: main}
  periodSeconds: 10
  timeoutSeconds: 5
{{- else if eq .plane "aurora" -}}
startupProbe:
  httpGet: {path: /health, port: main}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /health, port: main}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  tcpSocket: {port: main}
  periodSeconds: 10
{{- else -}}
startupProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  tcpSocket: {port: main}
  periodSeconds: 10
{{- end }}
{{- end }}
