{{- define "hephy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "hephy.labels" -}}
app.kubernetes.io/name: hephy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "hephy.selector" -}}
app.kubernetes.io/name: hephy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The address of a node that people reach: the first one's external address, else its internal one. */}}
{{- define "hephy.node" -}}
{{- $found := dict "internal" "" "external" "" -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- range .status.addresses -}}
{{- if and (eq .type "InternalIP") (not $found.internal) -}}{{- $_ := set $found "internal" .address -}}{{- end -}}
{{- if and (eq .type "ExternalIP") (not $found.external) -}}{{- $_ := set $found "external" .address -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $found.external | default $found.internal | default "127.0.0.1" -}}
{{- end -}}

{{- define "hephy.sshAddress" -}}
{{- if .Values.ssh.address -}}
{{ .Values.ssh.address }}
{{- else if eq .Values.ssh.service.type "NodePort" -}}
{{ include "hephy.node" . }}:{{ .Values.ssh.service.nodePort | default 22 }}
{{- else -}}
{{ .Release.Name }}-ssh.{{ .Release.Namespace }}.svc:{{ .Values.ssh.service.port }}
{{- end -}}
{{- end -}}

{{- define "hephy.domain" -}}
{{ .Values.domain | default "hephy.local" }}
{{- end -}}

{{/* Where the apps answer without a domain. */}}
{{- define "hephy.appsUrl" -}}
{{- if eq .Values.router.service.type "NodePort" -}}
http://{{ include "hephy.node" . }}:{{ .Values.router.service.nodePort | default 80 }}/
{{- else -}}
http://{{ .Release.Name }}-router.{{ .Release.Namespace }}.svc:{{ .Values.router.service.port }}/
{{- end -}}
{{- end -}}

{{- define "hephy.embedded" -}}
{{- if not .Values.registry.url -}}true{{- end -}}
{{- end -}}

{{/* What kubelets call the registry. */}}
{{- define "hephy.pullHost" -}}
{{- if .Values.registry.url -}}
{{ .Values.registry.url }}
{{- else -}}
{{ .Values.registry.embedded.pullHost | default (printf "127.0.0.1:%v" (.Values.registry.embedded.nodePort | default 30500)) }}
{{- end -}}
{{- end -}}

{{- define "hephy.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "hephy.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
